package main

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	pb "sessiond/v1"
)

// maxBatch is the maximum number of sessions in a round.
const maxBatch = 4096

// Connection is a connection of a client. End is called once the client must be disconnected, because its session has
// moved to another gateway or was destroyed.
type Connection struct {
	session int64
	opened  time.Time
	end     func()
	ready   chan bool
	// The lease the session was registered under for this connection, or 0.
	lease uint64
	// The lease that the session may be taken from, decided by the first lookup. A retry must not take it from anyone
	// else.
	onlyFrom  uint64
	isClaimed bool
}

// Gateway keeps the sessions of its connections registered.
//
// Everything that happens only marks its session dirty. One loop looks dirty sessions up and makes all calls about
// sessions, one after the other. So no two calls about a session can overtake each other.
type Gateway struct {
	registry Registry
	owner    string
	unfollow context.CancelFunc
	wake     chan struct{} // there are dirty sessions
	doubt    chan struct{} // the lease may be gone

	mutex       sync.Mutex
	lease       uint64
	leases      map[uint64]bool // all leases of this gateway, also those that linger
	connections map[int64]map[*Connection]bool
	dirty       map[int64]bool
	isStopped   bool
}

func newGateway(ctx context.Context, registry Registry, owner string) (*Gateway, error) {
	g := &Gateway{
		registry: registry, owner: owner,
		wake: make(chan struct{}, 1), doubt: make(chan struct{}, 1),
		leases: map[uint64]bool{}, connections: map[int64]map[*Connection]bool{}, dirty: map[int64]bool{},
	}
	if err := g.grant(ctx); err != nil {
		return nil, err
	}
	go g.keep(ctx)
	go g.loop(ctx)
	return g, nil
}

// connect registers a session. It returns nil if the session is held by another gateway or cannot be registered in
// time.
func (g *Gateway) connect(session int64, end func()) *Connection {
	c := &Connection{session: session, opened: time.Now(), end: end, ready: make(chan bool, 1)}
	g.mutex.Lock()
	if g.connections[session] == nil {
		g.connections[session] = map[*Connection]bool{}
	}
	g.connections[session][c] = true
	g.mutex.Unlock()
	g.touch(session)
	select {
	case registered := <-c.ready:
		if registered {
			return c
		}
	case <-time.After(timeout):
	}
	g.close(c)
	return nil
}

// close ends a connection. If it was the last one of its session, the session is destroyed.
func (g *Gateway) close(c *Connection) {
	g.mutex.Lock()
	g.forget(c)
	g.mutex.Unlock()
	g.touch(c.session)
}

func (g *Gateway) forget(c *Connection) {
	if delete(g.connections[c.session], c); len(g.connections[c.session]) == 0 {
		delete(g.connections, c.session)
	}
}

// stop lets the sessions linger, so that the clients can move to other gateways and no observer sees them disappear.
func (g *Gateway) stop(ctx context.Context) error {
	g.mutex.Lock()
	g.isStopped = true
	g.mutex.Unlock()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request := &pb.RevokeLeaseRequest{LeaseId: g.currentLease(), Linger: durationpb.New(30 * time.Second)}
	_, err := g.registry.RevokeLease(ctx, request)
	return err
}

func (g *Gateway) touch(session int64) {
	g.mutex.Lock()
	g.dirty[session] = true
	g.mutex.Unlock()
	wakeUp(g.wake)
}

func (g *Gateway) touchAll() {
	g.mutex.Lock()
	for session := range g.connections {
		g.dirty[session] = true
	}
	g.mutex.Unlock()
	wakeUp(g.wake)
}

func wakeUp(channel chan struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}
