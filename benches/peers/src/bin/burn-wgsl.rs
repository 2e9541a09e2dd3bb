//! burn whose wgpu backend compiles kernels to WGSL.

fn main() -> wgloss_peers::Result<()> {
    wgloss_peers::burn::main("burn WGSL")
}
