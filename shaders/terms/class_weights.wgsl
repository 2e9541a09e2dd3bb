// For the divisor of a cross entropy's mean: a term is the weight of a kept row's class, if that is
// among the classes of this device. The first row whose class is out of range is reported in the control block.
//
// Reads `class_indices` [rows] and `weight` [classes] (shared/classes.wgsl).

// Whether to note in the control block that a row was kept.
override NOTE_KEPT: bool = false;

fn term(i: u32) -> f32 {
    let label = label_of_row(i, params.ignore_index, params.total_classes);
    switch label.kind {
        case ROW_KEPT: {
            if NOTE_KEPT {
                atomicStore(&control.any_kept, 1u);
            }
            let here = u32(label.index) - params.first_class;
            if here < params.classes {
                return class_weight(here);
            }
            return 0.0;
        }
        case ROW_IGNORED: { return 0.0; }
        default: {
            report_bad(i);
            return 0.0;
        }
    }
}
