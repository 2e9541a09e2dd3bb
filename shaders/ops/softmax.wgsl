// Softmax: the hooks of family/row_maps.wgsl. With k a class at the maximum,
//     grad[c] = p[c] ((g[c] - g[k]) + sum over j of p[j] (g[k] - g[j]))
// which does not cancel where one class has nearly all of the mass.

fn holds_exponentials() -> bool {
    return FITS;
}

fn output_of_four(k: u32, statistics: Statistics) -> vec4<f32> {
    return exponentials(k, statistics.m) * (1.0 / (1.0 + statistics.s));
}

// g[k], and the sum.
fn prepare(team: Team, row: Row, statistics: Statistics) -> vec2<f32> {
    // no class is at the maximum where all are masked; that row is NaN whatever comes of this
    let k = min(first_at_max(team, row, statistics), params.classes - 1u);
    let g_k = load_row_upstream(row, k & ~3u)[k & 3u];

    var sum = vec4(0.0);
    for (var c = 4u * team.member; c < params.classes; c += 4u * team.size) {
        let valid = valid_classes(c);
        let e = exp_nonpositive(load_row(row, c, valid) - statistics.m);
        let g = load_row_upstream(row, c);
        let terms = annihilating_product(e, vec4(g_k) - g);
        // a NaN comes before a factor of 0
        sum += select(vec4(0.0), select(terms, g, is_nan4(g)), valid);
    }
    return vec2(g_k, team_sum(team, vec4(add_up(sum))).x / (1.0 + statistics.s));
}

fn map_gradient(
    k: u32, statistics: Statistics, prepared: vec2<f32>, g: vec4<f32>,
) -> vec4<f32> {
    let p = output_of_four(k, statistics);
    let gradient = annihilating_product(p, (g - prepared.x) + prepared.y);
    return select(gradient, vec4(prepared.y), is_nan(prepared.y));
}
