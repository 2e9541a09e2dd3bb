// Neighbours in a subgroup exchange by shuffles: without memory and without a barrier, each with the one
// at twice the distance of the step before. So all come to the same bits, whatever the size of a
// subgroup, which is no compile-time fact.

override WORKGROUP_SIZE: u32 = 64u;
// A power of two, and no more than the smallest subgroup has. A workgroup has whole subgroups.
override NEIGHBOURS: u32 = 4u;

struct Builtins {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
}

fn workgroup_of(builtins: Builtins) -> u32 {
    return builtins.workgroup.x + builtins.workgroup.y * builtins.workgroups.x;
}

// Which of a workgroup's, neighbours by neighbours: as many as there are where subgroups are full, as those
// of a workgroup of whole ones are on all drivers known. No more than that whatever a driver does.
fn invocation_of(builtins: Builtins) -> u32 {
    return min(
        builtins.subgroup * builtins.subgroup_size + builtins.invocation, WORKGROUP_SIZE - 1u);
}

fn neighbours_max(value: f32) -> f32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all = max(all, subgroupShuffleXor(all, distance));
    }
    return all;
}

fn neighbours_min(value: u32) -> u32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all = min(all, subgroupShuffleXor(all, distance));
    }
    return all;
}

fn neighbours_or(value: u32) -> u32 {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all |= subgroupShuffleXor(all, distance);
    }
    return all;
}

fn neighbours_sum_three(value: vec3<f32>) -> vec3<f32> {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all += subgroupShuffleXor(all, distance);
    }
    return all;
}

fn neighbours_sum(value: vec4<f32>) -> vec4<f32> {
    var all = value;
    for (var distance = 1u; distance < NEIGHBOURS; distance *= 2u) {
        all += subgroupShuffleXor(all, distance);
    }
    return all;
}
