// Softmax: the hooks of family/row_maps.wgsl. The gradient is, with k a class at the maximum,
//     grad[c] = p[c] ((g[c] - g[k]) + sum over j of p[j] (g[k] - g[j]))
// which does not cancel where one class has nearly all of the mass.

fn tile_holds_exponentials() -> bool {
    return ROW_IN_REGISTERS;
}

fn output_of_vec4(k: u32, stats: RowStats) -> vec4<f32> {
    return exponentials(k, stats.m) * (1.0 / (1.0 + stats.denom_minus_1));
}

// g[k], and the sum over j. This reads the row and its upstream gradient once more.
fn prepare(team: Team, row: Row, stats: RowStats) -> vec2<f32> {
    // A row of nothing but -inf has no class at its maximum. It is NaN, whichever class is taken
    // here.
    let k = min(first_at_max(team, row, stats.m), params.classes - 1u);
    let g_k = load_row_upstream(row, k & ~3u)[k & 3u];

    var sum = vec4(0.0);
    for (var c = 4u * member; c < params.classes; c += 4u * team.size) {
        let valid = valid_classes(c);
        let e = exp_nonpositive(load_row(row, c, valid) - stats.m);
        let g = load_row_upstream(row, c);
        let terms = zero_wins(e, vec4(g_k) - g);
        // a NaN gradient makes the row NaN, whatever its probability
        sum += select(vec4(0.0), select(terms, g, is_nan4(g)), valid);
    }
    return vec2(g_k, team_sum(team, vec4(add_up(sum))).x / (1.0 + stats.denom_minus_1));
}

fn map_gradient(
    k: u32, stats: RowStats, prepared: vec2<f32>, g: vec4<f32>,
) -> vec4<f32> {
    let p = output_of_vec4(k, stats);
    let gradient = zero_wins(p, (g - prepared.x) + prepared.y);
    return select(gradient, vec4(prepared.y), is_nan(prepared.y));
}
