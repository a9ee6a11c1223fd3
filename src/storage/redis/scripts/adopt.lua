-- Attaches a lease to a partition. Its slot is never used again.
local function adopt(lease, attached_key, slots_key, held_key)
    local state = call('HMGET', meta, 'slots', 'leases')
    local slot = text(state[1] + 1)
    call('HSET', meta, 'slots', slot, 'leases', text(state[2] + 1))
    call('HSET', attached_key, lease, slot)
    call('HSET', slots_key, slot, lease)
    call('HSET', held_key, slot, 0)
end
