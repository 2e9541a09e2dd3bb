// The upstream gradient of unreduced losses: one value per row or element, in the input's storage.

fn upstream_of_row(row: u32) -> f32 {
    return load_upstream_element(row);
}

fn upstream_of_elements(at: u32, last: u32) -> vec4<f32> {
    return load_upstream(at, 1u, last);
}
