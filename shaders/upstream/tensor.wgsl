// The upstream gradient of unreduced losses: one value per row or element, in the input's storage.

fn upstream_of_row(row: u32) -> f32 {
    return load_upstream_element(place(UPSTREAM, 0u, row));
}

fn upstream_of_elements(quad: Quad) -> vec4<f32> {
    return load_upstream(place(UPSTREAM, quad.line, quad.column), 1u, quad.last);
}
