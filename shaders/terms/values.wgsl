// For sums of values in memory.

// [count]
@group(0) @binding(1) var<storage, read> values: array<f32>;

fn term(i: u32) -> f32 {
    return values[element_index(INPUT, 0u, i)];
}
