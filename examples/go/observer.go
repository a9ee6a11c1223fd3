package main

import (
	"context"
	"fmt"

	pb "sessiond/v1"
)

// observe mirrors which sessions exist and which lease each is under, and prints every change.
func observe(ctx context.Context, registry Registry) error {
	held := map[int64]uint64{}
	return registry.follow(ctx, &pb.SubscribeRequest{Placements: true}, func(message *pb.SubscribeResponse) {
		switch body := message.Body.(type) {
		case *pb.SubscribeResponse_Subscribed:
			// Without a cursor, a snapshot follows.
			if message.Cursor == "" {
				held = map[int64]uint64{}
			}
		case *pb.SubscribeResponse_Reset_:
			held = map[int64]uint64{}
		case *pb.SubscribeResponse_Snapshot:
			for _, session := range body.Snapshot.Sessions {
				held[session.SessionId] = session.LeaseId
			}
		case *pb.SubscribeResponse_Synced:
			fmt.Println("synced", len(held))
		case *pb.SubscribeResponse_Events:
			for _, event := range body.Events.Events {
				switch event.Type {
				case pb.SessionEventType_SESSION_EVENT_TYPE_DESTROYED:
					delete(held, event.SessionId)
					fmt.Println("destroyed", event.SessionId)
				case pb.SessionEventType_SESSION_EVENT_TYPE_MOVED:
					held[event.SessionId] = event.LeaseId
					fmt.Println("moved", event.SessionId)
				case pb.SessionEventType_SESSION_EVENT_TYPE_CREATED:
					held[event.SessionId] = event.LeaseId
					fmt.Println("created", event.SessionId)
				}
			}
		}
	})
}
