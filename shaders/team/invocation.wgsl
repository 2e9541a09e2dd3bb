// A team of one invocation, which has nothing to reduce. It is chosen for few classes, and for
// classes that lie far apart, where neighbouring invocations read neighbouring rows.
//
// A team is the group of invocations that work on one row or one chunk of elements together; each
// of them is a member. Each file in this folder defines the same interface: Workgroup, Invocation,
// Team, member, team_of, uniform_index, and the reductions team_max, team_min, team_or, team_sum
// and team_sum_three, which give every member the result over all members, and which every member
// must reach.
//
// Where that takes barriers, browsers' compilers must be able to prove it. To them a struct is the
// same for all members of a workgroup only if all of it is. So what differs between members lies
// apart from what does not: Invocation from Workgroup, and member from Team. And uniform_index is
// element_index (shared/offsets.wgsl) for what decides, row by row, whether a team comes to a
// barrier: it reads the uniform buffer itself where there are any.

override WORKGROUP_SIZE: u32 = 64u;

struct Workgroup {
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
}

struct Invocation {
    @builtin(local_invocation_index) index: u32,
}

struct Team {
    // which team of the dispatch
    index: u32,
    // how many members
    size: u32,
}

// Which member of the team this is. It is set by team_of.
var<private> member: u32;

fn team_of(workgroup: Workgroup, invocation: Invocation) -> Team {
    let index = workgroup.id.x + workgroup.id.y * workgroup.count.x;
    member = 0u;
    return Team(index * WORKGROUP_SIZE + invocation.index, 1u);
}

fn uniform_index(binding: u32, outer_row: u32, column: u32) -> u32 {
    return element_index(binding, outer_row, column);
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
