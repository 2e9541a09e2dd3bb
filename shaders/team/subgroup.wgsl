// A team of one subgroup: exchanges without memory and without a barrier. The workgroup may hold
// several subgroups, each a team of its own.
//
// The size of a subgroup is no compile-time fact. The host dispatches for the fewest teams a
// workgroup can hold; where it holds more, the teams past the end find no row and return.

override WORKGROUP_SIZE: u32 = 64u;

struct Builtins {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
    @builtin(subgroup_size) size: u32,
}

struct Team {
    index: u32,
    member: u32,
    size: u32,
}

fn team_of(builtins: Builtins) -> Team {
    let workgroup = builtins.workgroup.x + builtins.workgroup.y * builtins.workgroups.x;
    let index = workgroup * builtins.subgroups + builtins.subgroup;
    return Team(index, builtins.invocation, builtins.size);
}

fn team_max(team: Team, value: f32) -> f32 {
    return subgroupMax(value);
}

fn team_min(team: Team, value: u32) -> u32 {
    return subgroupMin(value);
}

fn team_or(team: Team, value: u32) -> u32 {
    return subgroupOr(value);
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return subgroupAdd(value);
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    return subgroupAdd(value);
}
