// For element-wise losses: they write one loss an element, or one sum a team, in f32.

// [elements], or with REDUCED [teams]
@group(0) @binding(6) var<storage, read_write> losses: array<f32>;

fn store_results(at: u32, last: u32, value: vec4<f32>) {
    for (var i = 0u; i <= last; i += 1u) {
        losses[at + i] = value[i];
    }
}

fn store_sum(at: u32, sum: f32) {
    losses[at] = sum;
}
