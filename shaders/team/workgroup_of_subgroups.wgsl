// A team of one workgroup, on devices with subgroups. Each cluster reduces by shuffles
// (shared/cluster.wgsl); its first member publishes the result in workgroup memory, and every
// member combines all clusters' results in order. That takes two barriers a reduction, where the
// tree of workgroup.wgsl takes two more than it has levels.
//
// Ownership: the first member of cluster i writes only element i. Barriers: one before the memory
// is written, because members may still read the reduction before; one after, because all members
// read what others wrote.

struct Team {
    index: u32,
    size: u32,
}

var<private> member: u32;

override CLUSTERS: u32 = WORKGROUP_SIZE / CLUSTER_SIZE;

var<workgroup> shared_values: array<vec4<f32>, CLUSTERS>;
var<workgroup> shared_bits: array<u32, CLUSTERS>;

fn team_of(workgroup: Workgroup, invocation: Invocation) -> Team {
    member = index_in_workgroup(invocation);
    return Team(workgroup_index(workgroup), WORKGROUP_SIZE);
}

fn uniform_index(binding: u32, outer_row: u32, column: u32) -> u32 {
    let offset = params.offsets[binding];
    return offset.x + outer_row * offset.y + column;
}

// Makes each cluster's value readable by every member of the team.
fn publish(team: Team, of_cluster: vec4<f32>) {
    workgroupBarrier();
    if member % CLUSTER_SIZE == 0u {
        shared_values[member / CLUSTER_SIZE] = of_cluster;
    }
    workgroupBarrier();
}

fn publish_bits(team: Team, of_cluster: u32) {
    workgroupBarrier();
    if member % CLUSTER_SIZE == 0u {
        shared_bits[member / CLUSTER_SIZE] = of_cluster;
    }
    workgroupBarrier();
}

fn team_max(team: Team, value: f32) -> f32 {
    publish(team, vec4(cluster_max(value)));
    var all = shared_values[0].x;
    for (var cluster = 1u; cluster < CLUSTERS; cluster += 1u) {
        all = max(all, shared_values[cluster].x);
    }
    return all;
}

fn team_min(team: Team, value: u32) -> u32 {
    publish_bits(team, cluster_min(value));
    var all = shared_bits[0];
    for (var cluster = 1u; cluster < CLUSTERS; cluster += 1u) {
        all = min(all, shared_bits[cluster]);
    }
    return all;
}

fn team_or(team: Team, value: u32) -> u32 {
    publish_bits(team, cluster_or(value));
    var all = shared_bits[0];
    for (var cluster = 1u; cluster < CLUSTERS; cluster += 1u) {
        all |= shared_bits[cluster];
    }
    return all;
}

fn team_sum_three(team: Team, value: vec3<f32>) -> vec3<f32> {
    return team_sum(team, vec4(value, 0.0)).xyz;
}

fn team_sum(team: Team, value: vec4<f32>) -> vec4<f32> {
    publish(team, cluster_sum(value));
    var all = shared_values[0];
    for (var cluster = 1u; cluster < CLUSTERS; cluster += 1u) {
        all += shared_values[cluster];
    }
    return all;
}
