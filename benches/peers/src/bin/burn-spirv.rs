//! burn whose wgpu backend compiles kernels to SPIR-V where the adapter allows, else to WGSL.

fn main() -> wgloss_peers::Result<()> {
    wgloss_peers::burn::main("burn SPIR-V")
}
