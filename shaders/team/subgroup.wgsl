// A team of neighbours in a subgroup (shared/neighbours.wgsl): NEIGHBOURS of them.

struct Team {
    index: u32,
    member: u32,
    size: u32,
}

fn team_of(builtins: Builtins) -> Team {
    let invocation = invocation_of(builtins);
    let teams = WORKGROUP_SIZE / NEIGHBOURS;
    let index = workgroup_of(builtins) * teams + invocation / NEIGHBOURS;
    return Team(index, invocation % NEIGHBOURS, NEIGHBOURS);
}

fn team_max(team: Team, value: f32) -> f32 {
    return neighbours_max(value);
}

fn team_min(team: Team, value: u32) -> u32 {
    return neighbours_min(value);
}

fn team_or(team: Team, value: u32) -> u32 {
    return neighbours_or(value);
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return neighbours_sum_three(value);
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    return neighbours_sum(value);
}
