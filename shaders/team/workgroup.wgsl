// A team of one workgroup, on devices without subgroups. It reduces in workgroup memory, as a
// binary tree, so that the order of additions is fixed. It is chosen for long rows on hardware;
// on software drivers it is ruinous, because their barriers switch between invocations.
//
// Override: WORKGROUP_SIZE, a power of two. Ownership: member i writes only element i. Barriers:
// one before each tree, because members may still read the result of the reduction before; one
// before each level and after the last, because a level reads what other members wrote in the
// level before.

override WORKGROUP_SIZE: u32 = 64u;

struct Workgroup {
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
}

struct Invocation {
    @builtin(local_invocation_index) index: u32,
}

struct Team {
    index: u32,
    size: u32,
}

var<private> member: u32;

var<workgroup> shared_values: array<vec4<f32>, WORKGROUP_SIZE>;
var<workgroup> shared_bits: array<u32, WORKGROUP_SIZE>;

fn team_of(workgroup: Workgroup, invocation: Invocation) -> Team {
    member = invocation.index;
    return Team(workgroup.id.x + workgroup.id.y * workgroup.count.x, WORKGROUP_SIZE);
}

fn uniform_index(binding: u32, outer_row: u32, column: u32) -> u32 {
    let offset = params.offsets[binding];
    return offset.x + outer_row * offset.y + column;
}

fn team_max(team: Team, value: f32) -> f32 {
    workgroupBarrier();
    shared_values[member] = vec4(value);
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if member < half {
            shared_values[member].x = max(shared_values[member].x, shared_values[member + half].x);
        }
    }
    workgroupBarrier();
    return shared_values[0].x;
}

fn team_min(team: Team, value: u32) -> u32 {
    workgroupBarrier();
    shared_bits[member] = value;
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if member < half {
            shared_bits[member] = min(shared_bits[member], shared_bits[member + half]);
        }
    }
    workgroupBarrier();
    return shared_bits[0];
}

fn team_or(team: Team, value: u32) -> u32 {
    workgroupBarrier();
    shared_bits[member] = value;
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if member < half {
            shared_bits[member] |= shared_bits[member + half];
        }
    }
    workgroupBarrier();
    return shared_bits[0];
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return team_sum(team, vec4(value, 0.0)).xyz;
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    shared_values[member] = value;
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if member < half {
            shared_values[member] += shared_values[member + half];
        }
    }
    workgroupBarrier();
    return shared_values[0];
}
