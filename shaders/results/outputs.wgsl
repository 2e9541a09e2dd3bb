// For element-wise maps: they write one output an element, stored as the input is (storage/).

fn store_results(at: u32, last: u32, value: vec4<f32>) {
    store_output(at, 1u, last, value);
}

// Maps are not reduced.
fn store_sum(at: u32, sum: f32) {}
