// A team of one workgroup, where there are subgroups: neighbours in these exchange by shuffles
// (shared/neighbours.wgsl), and what each NEIGHBOURS found goes through workgroup memory, where every member
// takes it in order. Two barriers an exchange, where the tree of workgroup.wgsl has two more than levels.
//
// Barriers: one before memory is written, because it may still be read from the exchange before; one
// before it is read.

struct Team {
    index: u32,
    member: u32,
    size: u32,
}

override PARTS: u32 = WORKGROUP_SIZE / NEIGHBOURS;

var<workgroup> exchange: array<vec4<f32>, PARTS>;
var<workgroup> exchange_bits: array<u32, PARTS>;

fn team_of(builtins: Builtins) -> Team {
    return Team(workgroup_of(builtins), invocation_of(builtins), WORKGROUP_SIZE);
}

fn tell(team: Team, found: vec4<f32>) {
    workgroupBarrier();
    if team.member % NEIGHBOURS == 0u {
        exchange[team.member / NEIGHBOURS] = found;
    }
    workgroupBarrier();
}

fn tell_bits(team: Team, found: u32) {
    workgroupBarrier();
    if team.member % NEIGHBOURS == 0u {
        exchange_bits[team.member / NEIGHBOURS] = found;
    }
    workgroupBarrier();
}

fn team_max(team: Team, value: f32) -> f32 {
    tell(team, vec4(neighbours_max(value)));
    var all = exchange[0].x;
    for (var part = 1u; part < PARTS; part += 1u) {
        all = max(all, exchange[part].x);
    }
    return all;
}

fn team_min(team: Team, value: u32) -> u32 {
    tell_bits(team, neighbours_min(value));
    var all = exchange_bits[0];
    for (var part = 1u; part < PARTS; part += 1u) {
        all = min(all, exchange_bits[part]);
    }
    return all;
}

fn team_or(team: Team, value: u32) -> u32 {
    tell_bits(team, neighbours_or(value));
    var all = exchange_bits[0];
    for (var part = 1u; part < PARTS; part += 1u) {
        all |= exchange_bits[part];
    }
    return all;
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return team_sum(team, vec4(value, 0.0)).xyz;
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    tell(team, neighbours_sum(value));
    var all = exchange[0];
    for (var part = 1u; part < PARTS; part += 1u) {
        all += exchange[part];
    }
    return all;
}
