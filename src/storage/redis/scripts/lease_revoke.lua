-- Ends a lease for the caller to sweep. ARGV: registry id, lease, ms for which nobody else sweeps it.
-- Gives what lease_expire gives for one, or nil when it is gone.
return end_lease(ARGV[2], 'v', ARGV[3]) or false
