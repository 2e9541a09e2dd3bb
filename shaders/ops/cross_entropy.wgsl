// Cross entropy with class-index targets: the hooks of family/rows.wgsl.
// a[c] = (label smoothing / C) w[c], plus (1 - label smoothing) w[y] at the target y.

// whether the gradient is that of the mean, whose divisor is in the control block
override MEAN: bool = false;

fn row_target(row: u32) -> RowTarget {
    let label = label_of_row(row, params.ignore_index, params.classes);
    if label.kind == ROW_BAD && is_first_bad(row) {
        control.bad_value = label.index;
        control.classes = params.classes;
    }
    var amount = 0.0;
    if label.kind == ROW_KEPT {
        amount = params.confidence * class_weight(u32(label.index));
    }
    return RowTarget(label.kind, u32(label.index), amount);
}

fn amount(t: RowTarget, c: u32, valid: vec4<bool>) -> vec4<f32> {
    let classes = vec4(c, c + 1u, c + 2u, c + 3u);
    var a = select(vec4(0.0), vec4(t.amount), classes == vec4(t.label));
    if SPREAD {
        a += select(vec4(0.0), params.smoothing * class_weights(c), valid);
    }
    return a;
}

fn row_scale(row: u32) -> RowScale {
    let value = upstream_of_row(row);
    if MEAN {
        return RowScale(value / control.divisor, control.divisor == 0.0);
    }
    return RowScale(value, false);
}
