// The control block: what the dispatches of one call pass to one another and to the host. The host
// zeroes it before the first of them.

struct Control {
    // the divisor of the mean, where only the device can know it
    divisor: f32,
    // u32 max minus the first element or row with a bad value; 0 while there is none
    first_bad: atomic<u32>,
    // the value found there
    bad_value: i32,
    // for a class out of range: how many classes there are
    classes: u32,
    // whether any row was kept, where an op asks
    any_kept: atomic<u32>,
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
}

@group(0) @binding(7) var<storage, read_write> control: Control;

// The index among all of the i-th element or row of this dispatch. 2^32 - 2 stands for itself and
// all that come after it.
fn index_among_all(i: u32) -> u32 {
    return params.first + min(i, 0xfffffffeu - params.first);
}

// The first bad index is kept as the maximum of inverted indices, so that 0, which clearing leaves,
// means that there is none.
fn report_bad(i: u32) {
    atomicMax(&control.first_bad, 0xffffffffu - index_among_all(i));
}

fn is_first_bad(i: u32) -> bool {
    return atomicLoad(&control.first_bad) == 0xffffffffu - index_among_all(i);
}
