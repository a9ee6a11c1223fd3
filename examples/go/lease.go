package main

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	pb "sessiond/v1"
)

const (
	ttl     = 30 * time.Second
	timeout = 10 * time.Second
)

// grant takes a new lease and opens its stream, and lets the loop register all sessions under it.
func (g *Gateway) grant(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	granted, err := g.registry.GrantLease(call, &pb.GrantLeaseRequest{Ttl: durationpb.New(ttl), Owner: g.owner})
	if err != nil {
		return err
	}
	g.mutex.Lock()
	g.lease = granted.LeaseId
	g.leases[g.lease] = true
	g.mutex.Unlock()
	g.touchAll()
	if g.unfollow != nil {
		g.unfollow()
	}
	follow, unfollow := context.WithCancel(ctx)
	g.unfollow = unfollow
	go g.registry.follow(follow, &pb.SubscribeRequest{LeaseIds: []uint64{granted.LeaseId}}, g.hear)
	return nil
}

// hear marks the sessions that a message of the lease's stream mentions. The loop then looks them up.
func (g *Gateway) hear(message *pb.SubscribeResponse) {
	for _, session := range message.GetSnapshot().GetSessions() {
		g.touch(session.SessionId)
	}
	for _, event := range message.GetEvents().GetEvents() {
		g.touch(event.SessionId)
	}
	// Sessions that are not in the snapshot may have left during the break.
	if message.GetSynced() != nil {
		g.touchAll()
	}
}

// keep keeps the lease alive three times per ttl, retries often, and replaces a lease that is gone.
func (g *Gateway) keep(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-time.After(ttl / 3):
		case <-g.doubt:
		case <-ctx.Done():
			return
		}
		for failures := 0; ctx.Err() == nil; failures++ {
			err := g.keepOnce(ctx)
			if isLeaseGone(err) {
				err = g.grant(ctx)
			}
			if err == nil {
				break
			}
			pause(ctx, err, failures)
		}
	}
}

func (g *Gateway) keepOnce(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, ttl/10)
	defer cancel()
	_, err := g.registry.KeepLeaseAlive(call, &pb.KeepLeaseAliveRequest{LeaseId: g.currentLease()})
	return err
}

func (g *Gateway) currentLease() uint64 {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return g.lease
}
