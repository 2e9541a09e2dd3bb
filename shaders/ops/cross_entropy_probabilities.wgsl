// Cross entropy with probabilities as targets: the hooks of family/rows.wgsl.
// a[c] = w[c] ((1 - label smoothing) t[c] + label smoothing / C).

fn row_of(index: u32) -> Row {
    return row_at(index, TARGETS);
}

fn amount(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32> {
    if c >= params.classes {
        return vec4(0.0);
    }
    let t = load_targets(element_of(row.beside, c), row.beside.step, last_of_four(c));
    let smoothed = annihilating_product(vec4(params.confidence), t) + params.smoothing;
    let a = annihilating_product(class_weights(c), smoothed);
    // a NaN comes before a factor of 0
    return select(vec4(0.0), select(a, t, is_nan4(t)), valid);
}

fn row_scale(row: Row) -> RowScale {
    return RowScale(upstream_of_row(row.index) / params.divisor, false);
}
