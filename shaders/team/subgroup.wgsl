// A team of one cluster: CLUSTER_SIZE neighbouring invocations of a subgroup
// (shared/cluster.wgsl). A workgroup has several teams. No barriers, no workgroup memory.

struct Team {
    index: u32,
    size: u32,
}

var<private> member: u32;

fn team_of(workgroup: Workgroup, invocation: Invocation) -> Team {
    let index = index_in_workgroup(invocation);
    let teams = WORKGROUP_SIZE / CLUSTER_SIZE;
    member = index % CLUSTER_SIZE;
    return Team(workgroup_index(workgroup) * teams + index / CLUSTER_SIZE, CLUSTER_SIZE);
}

fn uniform_index(binding: u32, outer_row: u32, column: u32) -> u32 {
    return element_index(binding, outer_row, column);
}

fn team_max(team: Team, value: f32) -> f32 {
    return cluster_max(value);
}

fn team_min(team: Team, value: u32) -> u32 {
    return cluster_min(value);
}

fn team_or(team: Team, value: u32) -> u32 {
    return cluster_or(value);
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return cluster_sum_three(value);
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    return cluster_sum(value);
}
