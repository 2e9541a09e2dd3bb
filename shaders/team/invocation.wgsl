// A team of one invocation, which has nothing to reduce. It is chosen for few classes, and for
// classes that lie far apart, where neighbouring invocations read neighbouring rows.
//
// A team is the group of invocations that work on one row or one chunk of elements together; each
// of them is a member. Each file in this folder defines the same interface: Builtins, Team,
// team_of, and the reductions team_max, team_min, team_or, team_sum and team_sum_three, which
// give every member the result over all members, and which every member must reach.

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
