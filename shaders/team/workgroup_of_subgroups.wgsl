// A team of one workgroup, where there are subgroups: these exchange first, and one number of each
// goes through workgroup memory. Two barriers an exchange, where the tree of workgroup.wgsl has two
// more than levels.
//
// Barriers: one before memory is written, because it may still be read from the exchange before; one
// before it is read.

override WORKGROUP_SIZE: u32 = 64u;

struct Builtins {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) invocation_of_subgroup: u32,
}

struct Team {
    index: u32,
    member: u32,
    size: u32,
    // the member's subgroup, of how many, and whether it speaks for that
    subgroup: u32,
    subgroups: u32,
    is_speaker: bool,
}

// What each subgroup has found. There may be as many as invocations.
var<workgroup> exchange: array<vec4<f32>, WORKGROUP_SIZE>;
var<workgroup> exchange_bits: array<u32, WORKGROUP_SIZE>;

fn team_of(builtins: Builtins) -> Team {
    let workgroup = builtins.workgroup.x + builtins.workgroup.y * builtins.workgroups.x;
    return Team(
        workgroup, builtins.invocation, WORKGROUP_SIZE,
        builtins.subgroup, builtins.subgroups, builtins.invocation_of_subgroup == 0u);
}

fn tell(team: Team, value: vec4<f32>) {
    workgroupBarrier();
    if team.is_speaker {
        exchange[team.subgroup] = value;
    }
    workgroupBarrier();
}

fn tell_bits(team: Team, value: u32) {
    workgroupBarrier();
    if team.is_speaker {
        exchange_bits[team.subgroup] = value;
    }
    workgroupBarrier();
}

fn team_max(team: Team, value: f32) -> f32 {
    tell(team, vec4(subgroupMax(value)));
    var all = exchange[0].x;
    for (var i = 1u; i < team.subgroups; i += 1u) {
        all = max(all, exchange[i].x);
    }
    return all;
}

fn team_min(team: Team, value: u32) -> u32 {
    tell_bits(team, subgroupMin(value));
    var all = exchange_bits[0];
    for (var i = 1u; i < team.subgroups; i += 1u) {
        all = min(all, exchange_bits[i]);
    }
    return all;
}

fn team_or(team: Team, value: u32) -> u32 {
    tell_bits(team, subgroupOr(value));
    var all = exchange_bits[0];
    for (var i = 1u; i < team.subgroups; i += 1u) {
        all |= exchange_bits[i];
    }
    return all;
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return team_sum(team, vec4(value, 0.0)).xyz;
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    tell(team, subgroupAdd(value));
    var all = exchange[0];
    for (var i = 1u; i < team.subgroups; i += 1u) {
        all += exchange[i];
    }
    return all;
}
