// Log-softmax: the hooks of family/row_maps.wgsl. Its gradient is the row form with the negated
// upstream gradient as amounts.

fn holds_exponentials() -> bool {
    return false;
}

fn output_of_four(k: u32, statistics: Statistics) -> vec4<f32> {
    // two subtractions: a large maximum would swallow the logarithm
    return (held[k] - statistics.m) - log1p(statistics.s);
}

fn prepare(team: Team, row: Row, statistics: Statistics) -> vec2<f32> {
    return vec2(0.0);
}

fn map_gradient(
    k: u32, statistics: Statistics, prepared: vec2<f32>, g: vec4<f32>,
) -> vec4<f32> {
    return gradient_of_four(row_gradient(statistics), exponentials(k, statistics.m), -g);
}
