// Keeps the first fault that a program reported since the status was last checked. One invocation,
// after all other dispatches of the program.
//
// Reads the control block (shared/control.wgsl), which is cleared at every encoding; writes the
// status, which is cleared only when the host has read it. Words 1 to 3 of both are the inverted
// index of the first faulty row or element (0: none), the value found there, and the number of
// classes.

// [8]
@group(0) @binding(6) var<storage, read_write> status: array<u32, 8>;
// [8]
@group(0) @binding(7) var<storage, read_write> reported: array<u32, 8>;

@compute @workgroup_size(1)
fn keep_first_fault() {
    if status[1] == 0u && reported[1] != 0u {
        status[1] = reported[1];
        status[2] = reported[2];
        status[3] = reported[3];
    }
}
