// Cross entropy with probabilities as targets: the hooks of family/rows.wgsl. The target weights
// are a[c] = w[c] ((1 - label smoothing) t[c] + label smoothing / C).
//
// Reads `targets` [rows, classes] (storage/), `weight` [classes], the upstream gradient and the
// control block's divisor.

// Whether the gradient is that of a mean whose divisor is in the control block.
override MEAN: bool = false;

fn row_of(index: u32) -> Row {
    return row_at(index, TARGETS);
}

fn target_weights(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32> {
    if c >= params.classes {
        return vec4(0.0);
    }
    let t = load_targets(class_index(row.aligned, c), row.aligned.step, last_of_vec4(c));
    let smoothed = zero_wins(vec4(params.confidence), t) + params.smoothing;
    let a = zero_wins(class_weights(c), smoothed);
    // a NaN target makes the row NaN, whatever its class weight
    return select(vec4(0.0), select(a, t, is_nan4(t)), valid);
}

fn row_scale(row: Row) -> RowScale {
    let value = upstream_of_row(row.index);
    if MEAN {
        return RowScale(value / control.divisor, control.divisor == 0.0);
    }
    return RowScale(value / params.divisor, false);
}
