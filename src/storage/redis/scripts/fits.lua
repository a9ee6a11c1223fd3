-- Returns whether the keys of a partition's leases are consistent. They are inconsistent after one was lost.
local function fits(attached_key, closed_key, slots_key, held_key)
    local slots = call('HLEN', slots_key)
    return slots == tonumber(call('HGET', meta, 'leases')) and slots == call('HLEN', held_key)
        and slots == call('HLEN', attached_key) + call('HLEN', closed_key)
end
