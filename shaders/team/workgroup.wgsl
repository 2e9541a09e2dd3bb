// A team of one workgroup: exchanges through workgroup memory, as a binary tree, so that the order
// of additions is fixed. For long rows on real GPUs; ruinous on software drivers, whose barriers
// switch between invocations.
//
// WORKGROUP_SIZE must be a power of two. Barriers: one before each tree, because the memory may
// still be read from the exchange before; one after each level, before the next reads it.

override WORKGROUP_SIZE: u32 = 64u;

struct Builtins {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
}

struct Team {
    index: u32,
    member: u32,
    size: u32,
}

var<workgroup> exchange: array<vec4<f32>, WORKGROUP_SIZE>;
var<workgroup> exchange_bits: array<u32, WORKGROUP_SIZE>;

fn team_of(builtins: Builtins) -> Team {
    let workgroup = builtins.workgroup.x + builtins.workgroup.y * builtins.workgroups.x;
    return Team(workgroup, builtins.invocation, WORKGROUP_SIZE);
}

fn team_max(team: Team, value: f32) -> f32 {
    workgroupBarrier();
    exchange[team.member] = vec4(value);
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if team.member < half {
            exchange[team.member].x =
                max(exchange[team.member].x, exchange[team.member + half].x);
        }
    }
    workgroupBarrier();
    return exchange[0].x;
}

fn team_min(team: Team, value: u32) -> u32 {
    workgroupBarrier();
    exchange_bits[team.member] = value;
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if team.member < half {
            exchange_bits[team.member] =
                min(exchange_bits[team.member], exchange_bits[team.member + half]);
        }
    }
    workgroupBarrier();
    return exchange_bits[0];
}

fn team_or(team: Team, value: u32) -> u32 {
    workgroupBarrier();
    exchange_bits[team.member] = value;
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if team.member < half {
            exchange_bits[team.member] |= exchange_bits[team.member + half];
        }
    }
    workgroupBarrier();
    return exchange_bits[0];
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return team_sum(team, vec4(value, 0.0)).xyz;
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    exchange[team.member] = value;
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if team.member < half {
            exchange[team.member] += exchange[team.member + half];
        }
    }
    workgroupBarrier();
    return exchange[0];
}
