// What a row's target says, where it lies in a buffer that the dispatch writes to, for a team of one
// workgroup. It is the same for all members, since nobody writes to that part of the buffer; but
// browsers' compilers refuse barriers whose control flow depends on it, unless it comes from
// workgroupUniformLoad. The host takes this file for such buffers alone (src/kernel.rs), because it
// costs two barriers a row.
//
// Ownership: member 0 writes. Barriers: workgroupUniformLoad's own, one before it reads and one after.

var<workgroup> broadcast_bits: vec3<u32>;

fn uniform_target(target_bits: vec3<u32>) -> vec3<u32> {
    if member == 0u {
        broadcast_bits = target_bits;
    }
    return workgroupUniformLoad(&broadcast_bits);
}
