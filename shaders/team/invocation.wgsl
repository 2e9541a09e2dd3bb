// A team of one invocation: nothing to exchange. For few classes, and for classes that lie far
// apart, where neighbouring invocations read neighbouring rows.
//
// A team is the invocations that share one row or one stretch of elements. Each file in this folder
// defines the same: Builtins, Team, team_of, and the exchanges, which every member must reach.

override WORKGROUP_SIZE: u32 = 64u;

struct Builtins {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
}

struct Team {
    // which team of the dispatch
    index: u32,
    // which member of the team
    member: u32,
    // how many members
    size: u32,
}

fn team_of(builtins: Builtins) -> Team {
    let workgroup = builtins.workgroup.x + builtins.workgroup.y * builtins.workgroups.x;
    return Team(workgroup * WORKGROUP_SIZE + builtins.invocation, 0u, 1u);
}

fn team_max(team: Team, value: f32) -> f32 {
    return value;
}

fn team_min(team: Team, value: u32) -> u32 {
    return value;
}

fn team_or(team: Team, value: u32) -> u32 {
    return value;
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return value;
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    return value;
}
