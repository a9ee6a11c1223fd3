-- Attaches a lease to a partition, under a slot that is never reused. A lingering lease has '~' before its slot: its
-- sessions can be destroyed, but no session can come under it.
local function adopt(lease, lingers, attached_key, slots_key, held_key)
    local state = call('HMGET', meta, 'slots', 'leases')
    local slot = text(state[1] + 1)
    call('HSET', meta, 'slots', slot, 'leases', text(state[2] + 1))
    call('HSET', attached_key, lease, lingers .. slot)
    call('HSET', slots_key, slot, lease)
    call('HSET', held_key, slot, 0)
end
