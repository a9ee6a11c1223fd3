-- Adds a lease to the set from which leases are listed in the order of their ids.
local function list_lease(ids_key, lease)
    local id = 0
    for i = 1, 8 do
        id = id * 256 + string.byte(lease, i)
    end
    call('ZADD', ids_key, text(id), lease)
end
