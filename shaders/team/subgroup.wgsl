// A team of one cluster: CLUSTER_SIZE neighbouring invocations of a subgroup
// (shared/cluster.wgsl). A workgroup has several teams. No barriers, no workgroup memory.

struct Team {
    index: u32,
    member: u32,
    size: u32,
}

fn team_of(builtins: Builtins) -> Team {
    let invocation = invocation_of(builtins);
    let teams = WORKGROUP_SIZE / CLUSTER_SIZE;
    let index = workgroup_of(builtins) * teams + invocation / CLUSTER_SIZE;
    return Team(index, invocation % CLUSTER_SIZE, CLUSTER_SIZE);
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
