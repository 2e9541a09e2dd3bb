// Log-softmax: the hooks of family/row_maps.wgsl. Its gradient is that of a cross entropy whose
// target weights are the negated upstream gradient (shared/row_state.wgsl).

fn tile_holds_exponentials() -> bool {
    return false;
}

fn output_of_vec4(k: u32, stats: RowStats) -> vec4<f32> {
    // m is subtracted first, because added to a large m the logarithm would lose its digits
    return (tile[k] - stats.m) - log1p(stats.denom_minus_1);
}

fn prepare(team: Team, row: Row, stats: RowStats) -> vec2<f32> {
    return vec2(0.0);
}

fn map_gradient(
    k: u32, stats: RowStats, prepared: vec2<f32>, g: vec4<f32>,
) -> vec4<f32> {
    return gradient_of_vec4(row_gradient(stats), exponentials(k, stats.m), -g);
}
