// The upstream gradient of losses that are not reduced: one value a row or an element, stored as
// the input is (storage/).

fn upstream_of_row(row: u32) -> f32 {
    return load_upstream_element(element_index(UPSTREAM, 0u, row));
}

fn upstream_of_elements(at: Vec4Index) -> vec4<f32> {
    return load_upstream(element_index(UPSTREAM, at.outer_row, at.column), 1u, at.last);
}
