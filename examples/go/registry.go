package main

import (
	"context"
	"math/rand"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	pb "sessiond/v1"
)

// Registry makes calls to sessiond.
type Registry struct {
	pb.SessionServiceClient
	pb.LeaseServiceClient
}

// Debian's grpc-go uses version 1 of the protobuf API by default, which cannot encode our messages. A current
// google.golang.org/grpc needs no codec.
type codec struct{}

func (codec) Name() string                            { return "proto" }
func (codec) Marshal(m interface{}) ([]byte, error)   { return proto.Marshal(m.(proto.Message)) }
func (codec) Unmarshal(b []byte, m interface{}) error { return proto.Unmarshal(b, m.(proto.Message)) }

func connect(address string) (Registry, error) {
	connection, err := grpc.Dial(address, grpc.WithInsecure(),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.WaitForReady(true)),
		// The default waits for up to two minutes before it connects again.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true,
		}))
	return Registry{pb.NewSessionServiceClient(connection), pb.NewLeaseServiceClient(connection)}, err
}

// follow subscribes until ctx is done, and passes every message to handle. It resumes after each break, and starts over
// with a snapshot if the break was within one. It returns an error only if a retry would fail again.
func (r Registry) follow(ctx context.Context, request *pb.SubscribeRequest, handle func(*pb.SubscribeResponse)) error {
	cursor := ""
	for failures := 0; ctx.Err() == nil; failures++ {
		request.Start = &pb.SubscribeRequest_Snapshot{Snapshot: true}
		if cursor != "" {
			request.Start = &pb.SubscribeRequest_Cursor{Cursor: cursor}
		}
		err := r.read(ctx, request, func(message *pb.SubscribeResponse) {
			cursor = message.Cursor
			if message.GetSubscribed() == nil {
				failures = 0
			}
			handle(message)
		})
		switch status.Code(err) {
		case codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
			return err
		}
		pause(ctx, err, failures)
	}
	return ctx.Err()
}

// read reads one stream until it ends, or until it is silent for three heartbeats.
func (r Registry) read(ctx context.Context, request *pb.SubscribeRequest, handle func(*pb.SubscribeResponse)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := 10 * time.Second
	dead := time.AfterFunc(silence, cancel)
	defer dead.Stop()
	stream, err := r.Subscribe(ctx, request)
	for err == nil {
		var message *pb.SubscribeResponse
		if message, err = stream.Recv(); err == nil {
			if subscribed := message.GetSubscribed(); subscribed != nil {
				silence = 3*subscribed.Heartbeat.AsDuration() + time.Second
			}
			dead.Reset(silence)
			handle(message)
		}
	}
	return err
}

// pause waits before a retry, after this many failures before it: as long as the registry asks, and at least a random
// time. Clients that were cut off together do not come back together then.
func pause(ctx context.Context, err error, failures int) {
	longest := time.Second
	if failures < 4 {
		longest = 100 * time.Millisecond << failures
	}
	wait := time.Duration(rand.Int63n(int64(longest)))
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			delay := retry.RetryDelay
			asked := time.Duration(delay.GetSeconds())*time.Second + time.Duration(delay.GetNanos())
			if asked > wait {
				wait = asked
			}
		}
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}

func isLeaseGone(err error) bool {
	code := status.Code(err)
	return code == codes.NotFound || code == codes.FailedPrecondition
}
