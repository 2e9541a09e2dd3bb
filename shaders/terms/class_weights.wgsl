// The terms of a cross entropy's divisor: the weight of each kept row's class. Reports the first
// row whose class is out of range.

// Whether it matters if any row was kept.
override NOTE_KEPT: bool = false;

fn term(i: u32) -> f32 {
    let label = label_of_row(i, params.ignore_index, params.classes);
    switch label.kind {
        case ROW_KEPT: {
            if NOTE_KEPT {
                atomicStore(&control.any_kept, 1u);
            }
            return class_weight(u32(label.index));
        }
        case ROW_IGNORED: { return 0.0; }
        default: {
            report_bad(i);
            return 0.0;
        }
    }
}
