// The terms of a sum: values in memory.

@group(0) @binding(1) var<storage, read> values: array<f32>;

fn term(i: u32) -> f32 {
    return values[place(INPUT, 0u, i)];
}
