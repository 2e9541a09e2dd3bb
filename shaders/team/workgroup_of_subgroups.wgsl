// A team of one workgroup, where there are subgroups: neighbours in these exchange by shuffles, and one
// number of each NEIGHBOURS goes through workgroup memory, where all add them up in order. Two barriers an
// exchange, where the tree of workgroup.wgsl has two more than levels. As in subgroup.wgsl, the bits do
// not depend on the size of a subgroup.
//
// Barriers: one before memory is written, because it may still be read from the exchange before; one
// before it is read.

override WORKGROUP_SIZE: u32 = 64u;
// A power of two, and no more than the smallest subgroup has. A workgroup has whole subgroups.
override NEIGHBOURS: u32 = 4u;

struct Builtins {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
}

struct Team {
    index: u32,
    member: u32,
    size: u32,
    // which neighbours the member belongs to, and whether it speaks for them
    part: u32,
    is_speaker: bool,
}

// What each part has found. There may be as many as invocations.
var<workgroup> exchange: array<vec4<f32>, WORKGROUP_SIZE>;
var<workgroup> exchange_bits: array<u32, WORKGROUP_SIZE>;

fn team_of(builtins: Builtins) -> Team {
    let workgroup = builtins.workgroup.x + builtins.workgroup.y * builtins.workgroups.x;
    let invocation = builtins.subgroup * builtins.subgroup_size + builtins.invocation;
    return Team(
        workgroup, builtins.index, WORKGROUP_SIZE,
        invocation / NEIGHBOURS, invocation % NEIGHBOURS == 0u);
}

fn tell(team: Team, value: vec4<f32>) {
    workgroupBarrier();
    if team.is_speaker {
        exchange[team.part] = value;
    }
    workgroupBarrier();
}

fn tell_bits(team: Team, value: u32) {
    workgroupBarrier();
    if team.is_speaker {
        exchange_bits[team.part] = value;
    }
    workgroupBarrier();
}

fn team_max(team: Team, value: f32) -> f32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all = max(all, subgroupShuffleXor(all, distance));
    }
    tell(team, vec4(all));
    all = exchange[0].x;
    for (var i = 1u; i < WORKGROUP_SIZE / NEIGHBOURS; i += 1u) {
        all = max(all, exchange[i].x);
    }
    return all;
}

fn team_min(team: Team, value: u32) -> u32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all = min(all, subgroupShuffleXor(all, distance));
    }
    tell_bits(team, all);
    all = exchange_bits[0];
    for (var i = 1u; i < WORKGROUP_SIZE / NEIGHBOURS; i += 1u) {
        all = min(all, exchange_bits[i]);
    }
    return all;
}

fn team_or(team: Team, value: u32) -> u32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all |= subgroupShuffleXor(all, distance);
    }
    tell_bits(team, all);
    all = exchange_bits[0];
    for (var i = 1u; i < WORKGROUP_SIZE / NEIGHBOURS; i += 1u) {
        all |= exchange_bits[i];
    }
    return all;
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return team_sum(team, vec4(value, 0.0)).xyz;
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all += subgroupShuffleXor(all, distance);
    }
    tell(team, all);
    all = exchange[0];
    for (var i = 1u; i < WORKGROUP_SIZE / NEIGHBOURS; i += 1u) {
        all += exchange[i];
    }
    return all;
}
