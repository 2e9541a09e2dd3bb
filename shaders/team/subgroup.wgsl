// A team of neighbours in a subgroup: they exchange without memory and without a barrier, each with the
// one at twice the distance of the step before. So all come to the same bits, whatever the size of a
// subgroup, which is no compile-time fact.

override WORKGROUP_SIZE: u32 = 64u;
// The size of a team: a power of two, and no more than the smallest subgroup has. A workgroup has
// whole subgroups.
override NEIGHBOURS: u32 = 4u;

struct Builtins {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
}

struct Team {
    index: u32,
    member: u32,
    size: u32,
}

fn team_of(builtins: Builtins) -> Team {
    let workgroup = builtins.workgroup.x + builtins.workgroup.y * builtins.workgroups.x;
    let invocation = builtins.subgroup * builtins.subgroup_size + builtins.invocation;
    let index = workgroup * (WORKGROUP_SIZE / NEIGHBOURS) + invocation / NEIGHBOURS;
    return Team(index, invocation % NEIGHBOURS, NEIGHBOURS);
}

fn team_max(team: Team, value: f32) -> f32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all = max(all, subgroupShuffleXor(all, distance));
    }
    return all;
}

fn team_min(team: Team, value: u32) -> u32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all = min(all, subgroupShuffleXor(all, distance));
    }
    return all;
}

fn team_or(team: Team, value: u32) -> u32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all |= subgroupShuffleXor(all, distance);
    }
    return all;
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all += subgroupShuffleXor(all, distance);
    }
    return all;
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all += subgroupShuffleXor(all, distance);
    }
    return all;
}
