// Reductions within a cluster: CLUSTER_SIZE neighbouring invocations of a subgroup, as in the
// clustered operations of SPIR-V. They reduce by shuffles, without memory and without a barrier.
// Each step combines with the invocation at twice the distance of the step before, so the order
// of additions, and with it every bit, does not depend on the size of a subgroup, which no
// compiler knows.
//
// Overrides: WORKGROUP_SIZE, CLUSTER_SIZE. No barriers. All members of a cluster must reach a
// reduction together.

override WORKGROUP_SIZE: u32 = 64u;
// A power of two, at most the size of the device's smallest subgroup. The host makes a workgroup of
// whole subgroups.
override CLUSTER_SIZE: u32 = 4u;

struct Workgroup {
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
}

struct Invocation {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) index: u32,
}

fn workgroup_index(workgroup: Workgroup) -> u32 {
    return workgroup.id.x + workgroup.id.y * workgroup.count.x;
}

// The index of this invocation in its workgroup, counted so that each cluster is contiguous. It
// assumes full subgroups, as all known drivers give when the workgroup is a multiple of the
// subgroup's size. It is clamped, so that a driver that does not cannot make it index out of
// bounds.
fn index_in_workgroup(invocation: Invocation) -> u32 {
    return min(
        invocation.subgroup * invocation.subgroup_size + invocation.index, WORKGROUP_SIZE - 1u);
}

fn cluster_max(value: f32) -> f32 {
    var all = value;
    for (var distance = 1u; distance < CLUSTER_SIZE; distance *= 2u) {
        all = max(all, subgroupShuffleXor(all, distance));
    }
    return all;
}

fn cluster_min(value: u32) -> u32 {
    var all = value;
    for (var distance = 1u; distance < CLUSTER_SIZE; distance *= 2u) {
        all = min(all, subgroupShuffleXor(all, distance));
    }
    return all;
}

fn cluster_or(value: u32) -> u32 {
    var all = value;
    for (var distance = 1u; distance < CLUSTER_SIZE; distance *= 2u) {
        all |= subgroupShuffleXor(all, distance);
    }
    return all;
}

fn cluster_sum_three(value: vec3<f32>) -> vec3<f32> {
    var all = value;
    for (var distance = 1u; distance < CLUSTER_SIZE; distance *= 2u) {
        all += subgroupShuffleXor(all, distance);
    }
    return all;
}

fn cluster_sum(value: vec4<f32>) -> vec4<f32> {
    var all = value;
    for (var distance = 1u; distance < CLUSTER_SIZE; distance *= 2u) {
        all += subgroupShuffleXor(all, distance);
    }
    return all;
}
