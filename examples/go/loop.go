package main

import (
	"context"
	"errors"
	"time"

	pb "sessiond/v1"
)

// A client that has waited for longer than this may have gone to another gateway, so its session is not taken from there.
const freshness = time.Second

var errLeaseInDoubt = errors.New("the lease may be gone")

func (g *Gateway) loop(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		sessions, lease := g.take()
		if len(sessions) == 0 {
			select {
			case <-g.wake:
			case <-ctx.Done():
			}
			continue
		}
		err := g.round(ctx, sessions, lease)
		if err == nil {
			failures = 0
		} else {
			if isLeaseGone(err) || err == errLeaseInDoubt {
				wakeUp(g.doubt)
			}
			for _, session := range sessions {
				g.touch(session)
			}
			pause(ctx, err, failures)
			failures++
		}
	}
}

// take returns some dirty sessions, which are clean from now on, and the lease to register them under.
func (g *Gateway) take() (sessions []int64, lease uint64) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.isStopped {
		return nil, 0
	}
	for session := range g.dirty {
		if len(sessions) == maxBatch {
			break
		}
		sessions = append(sessions, session)
		delete(g.dirty, session)
	}
	return sessions, g.lease
}

// round makes the registry agree with the open connections of these sessions.
func (g *Gateway) round(ctx context.Context, sessions []int64, lease uint64) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found, err := g.registry.BatchLookupSessions(ctx, &pb.BatchLookupSessionsRequest{SessionIds: sessions})
	if err != nil {
		return err
	}
	if g.hasVanished(sessions, found, lease) {
		// Either somebody has destroyed these sessions, or they have ended with the lease.
		if err := g.keepOnce(ctx); err != nil {
			return err
		}
		if g.currentLease() != lease {
			return errLeaseInDoubt
		}
	}
	claims, releases := g.decide(sessions, found, lease)
	for from, sessions := range releases {
		request := &pb.BatchDestroySessionsRequest{SessionIds: sessions, LeaseId: from}
		if _, err := g.registry.BatchDestroySessions(ctx, request); err != nil {
			return err
		}
	}
	for onlyFrom, claimed := range claims {
		onlyFrom, ids := onlyFrom, []int64{}
		for session := range claimed {
			ids = append(ids, session)
		}
		request := &pb.BatchCreateSessionsRequest{SessionIds: ids, LeaseId: lease, OnlyFromLeaseId: &onlyFrom}
		created, err := g.registry.BatchCreateSessions(ctx, request)
		if err != nil {
			return err
		}
		for i, session := range ids {
			g.settle(session, claimed[session], created.LeaseIds[i] == lease, lease)
		}
	}
	return nil
}

// hasVanished returns whether a session that was registered under this lease does not exist.
func (g *Gateway) hasVanished(sessions []int64, found *pb.BatchLookupSessionsResponse, lease uint64) bool {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for i, session := range sessions {
		for c := range g.connections[session] {
			if c.lease == lease && (!found.Exists[i] || found.LeaseIds[i] == 0) {
				return true
			}
		}
	}
	return false
}

// decide compares the connections with what the registry says. It ends the connections whose client has left, and
// returns the sessions to create, by the lease they may be taken from, and those to destroy, by their lease.
func (g *Gateway) decide(sessions []int64, found *pb.BatchLookupSessionsResponse, lease uint64) (
	claims map[uint64]map[int64][]*Connection, releases map[uint64][]int64,
) {
	claims, releases = map[uint64]map[int64][]*Connection{}, map[uint64][]int64{}
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for i, session := range sessions {
		holder := found.LeaseIds[i]
		if len(g.connections[session]) == 0 {
			if holder != 0 && g.leases[holder] {
				releases[holder] = append(releases[holder], session)
			}
			continue
		}
		for c := range g.connections[session] {
			switch {
			case holder == lease:
				g.register(c, lease)
			case c.lease == lease:
				g.forget(c)
				c.end()
			default:
				if !c.isClaimed || c.lease != 0 {
					c.isClaimed, c.onlyFrom = true, 0
					// A session that was registered under an older lease is restored, but not taken from another gateway.
					if c.lease == 0 && time.Since(c.opened) < freshness {
						c.onlyFrom = holder
					}
				}
				if claims[c.onlyFrom] == nil {
					claims[c.onlyFrom] = map[int64][]*Connection{}
				}
				claims[c.onlyFrom][session] = append(claims[c.onlyFrom][session], c)
			}
		}
	}
	return claims, releases
}

// settle applies the answer to a claim.
func (g *Gateway) settle(session int64, connections []*Connection, isMine bool, lease uint64) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for _, c := range connections {
		if !g.connections[session][c] {
			continue
		}
		if isMine {
			g.register(c, lease)
		} else {
			g.forget(c)
			select {
			case c.ready <- false:
			default:
			}
			c.end()
		}
	}
	if len(g.connections[session]) == 0 {
		g.dirty[session] = true
		wakeUp(g.wake)
	}
}

func (g *Gateway) register(c *Connection, lease uint64) {
	c.lease = lease
	select {
	case c.ready <- true:
	default:
	}
}
