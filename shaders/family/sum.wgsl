// Sums. Each team adds up a chunk of terms and writes one number; the host repeats this over the
// results until one number is left. The order is fixed, so the sum is the same to the bit every
// time.
//
// Reads what the terms do; writes `sums` [teams], or the control block's divisor: member 0 of a
// team does. No barriers but those of team/.
//
// Hook, from a file of terms/:
//     fn term(i: u32) -> f32                     the i-th of what is summed

struct Params {
    offsets: array<vec4<u32>, 9>,
    // how many terms there are
    count: u32,
    // how many of them a team sums: a multiple of 32 times its size
    per_team: u32,
    teams: u32,
    // what the total is divided by, with DIVIDE; 0 means the divisor in the control block
    divisor: f32,
    // of terms/class_weights.wgsl
    classes: u32,
    ignore_index: i32,
    // the mean over no rows, with DIVIDE
    empty_mean: f32,
    // the first term of this dispatch, among all
    first: u32,
    // of terms/class_weights.wgsl: the first of these classes among all, and how many those are
    first_class: u32,
    total_classes: u32,
    unused_0: u32,
    unused_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// [teams]
@group(0) @binding(6) var<storage, read_write> sums: array<f32>;

// Whether the total is the divisor of a mean, and goes into the control block for later dispatches.
override TO_CONTROL: bool = false;
// Whether the total is divided. A divisor of 0 makes it NaN.
override DIVIDE: bool = false;

fn term_or_zero(i: u32) -> f32 {
    if i < params.count {
        return term(i);
    }
    return 0.0;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn sum(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    if team.index >= params.teams {
        return;
    }
    let first = team.index * params.per_team;
    // Eight vec4s are added up before they are added to the total, so that no sum takes many
    // additions.
    let stride = 4u * team.size;
    let end = min(first + params.per_team, params.count);
    var total = vec4(0.0);
    for (var block = first + 4u * member; block < end; block += 8u * stride) {
        var partial = vec4(0.0);
        for (var i = block; i < min(block + 8u * stride, end); i += stride) {
            partial += vec4(
                term_or_zero(i), term_or_zero(i + 1u), term_or_zero(i + 2u), term_or_zero(i + 3u));
        }
        total += partial;
    }
    var result = team_sum(team, vec4(add_up(total))).x;
    if member != 0u {
        return;
    }
    if DIVIDE {
        var divisor = params.divisor;
        if divisor == 0.0 {
            divisor = control.divisor;
        }
        if divisor == 0.0 {
            // empty_mean is NaN unless the op asks for another number
            let any_kept = atomicLoad(&control.any_kept) != 0u;
            result = select(params.empty_mean, nan(), any_kept);
        } else {
            result /= divisor;
        }
    }
    if TO_CONTROL {
        control.divisor = result;
    } else {
        sums[element_index(RESULTS, 0u, team.index)] = result;
    }
}
