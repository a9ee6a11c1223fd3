-- Asks whether sessions may come under a lease. KEYS: meta, leases, ended leases. ARGV: birth, lease.
-- Gives 1 and '' when they may, 0 and what is known of the lease when it is ending or has ended, -1 and '' when nothing is known of it.
if call('HEXISTS', KEYS[2], ARGV[2]) == 1 then
    return {1, ''}
end
local ended = call('HGET', KEYS[3], ARGV[2])
return ended and {0, ended} or {-1, ''}
