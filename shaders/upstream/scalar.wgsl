// The upstream gradient of a mean or a sum: one f32.

// [1]
@group(0) @binding(4) var<storage, read> upstream_scalar: array<f32>;

fn upstream_of_row(row: u32) -> f32 {
    return upstream_scalar[element_index(UPSTREAM, 0u, 0u)];
}

fn upstream_of_elements(at: Vec4Index) -> vec4<f32> {
    return vec4(upstream_scalar[element_index(UPSTREAM, 0u, 0u)]);
}
