// Cross entropy with class-index targets: the hooks of family/rows.wgsl, and of
// family/gather.wgsl. The target weights are a[c] = (label smoothing / C) w[c], plus (1 - label
// smoothing) w[y] at the target y.
//
// Reads `class_indices` [rows] and `weight` [classes] (shared/classes.wgsl), the upstream
// gradient and the control block's divisor. Writes the class of the first bad row into the
// control block. No barriers but those of uniform/.
//
// Hook, from a file of uniform/ or the family's:
//     fn uniform_target(target_bits: vec3<u32>) -> vec3<u32>
//                                    the same, known by compilers to be the same for a whole team

// Whether the gradient is that of a mean, whose divisor is in the control block.
override MEAN: bool = false;

fn row_of(index: u32) -> Row {
    let label = label_of_row(index, params.ignore_index, params.total_classes);
    if label.kind == ROW_BAD && is_first_bad(index) {
        control.bad_value = label.index;
        control.classes = params.total_classes;
    }
    // of another device's class, the number is larger than any of these
    let here = u32(label.index) - params.first_class;
    var target_weight = 0.0;
    if label.kind == ROW_KEPT && here < params.classes {
        target_weight = params.confidence * class_weight(here);
    }
    let target_bits = uniform_target(vec3(label.kind, here, bitcast<u32>(target_weight)));
    var row = row_at(index, INPUT);
    row.kind = target_bits.x;
    row.label = target_bits.y;
    row.target_weight = bitcast<f32>(target_bits.z);
    return row;
}

fn target_weights(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32> {
    var a = select(vec4(0.0), vec4(row.target_weight), vec4(row.label - c) == vec4(0u, 1u, 2u, 3u));
    if DENSE_TARGET {
        a += select(vec4(0.0), params.smoothing * class_weights(c), valid);
    }
    return a;
}

fn row_scale(row: Row) -> RowScale {
    let value = upstream_of_row(row.index);
    if MEAN {
        return RowScale(value / control.divisor, control.divisor == 0.0);
    }
    return RowScale(value, false);
}
