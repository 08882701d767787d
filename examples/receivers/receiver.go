// A receiver of pgstream_hooks in Go, by its standard library alone: keeps a copy of the tables that it hears of.
//
//	WEBHOOK_SECRET=whsec_… go run receiver.go 8000
//
// POST takes webhooks; GET shows the rows.
package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

type event struct {
	Data struct {
		ID        string                     `json:"id"`
		Action    string                     `json:"action"`
		Schema    string                     `json:"schema"`
		Table     string                     `json:"table"`
		Key       json.RawMessage            `json:"key"`
		OldKey    json.RawMessage            `json:"old_key"`
		Record    map[string]json.RawMessage `json:"record"`
		Unchanged []string                   `json:"unchanged"`
	} `json:"data"`
}

type table struct{ schema, name string }

type place struct {
	table table
	key   string
}

// Rows by table and key. In earnest this is a database: write rows and last ids in one transaction.
var (
	lock    sync.Mutex
	rows    = map[place]map[string]json.RawMessage{}
	last    = map[place]string{} // id of the last event of each row, also of those that are gone
	emptied = map[table]string{} // id of the last truncate of each table
)

// apply applies an event, unless a newer one of its row was here before: ids sort in commit order.
func apply(e event) {
	data := e.Data
	table := table{data.Schema, data.Table}
	has := func(key json.RawMessage) bool { return len(key) > 0 && string(key) != "null" }
	switch data.Action {
	case "truncate":
		if data.ID <= emptied[table] {
			return
		}
		emptied[table] = data.ID
		for place := range rows {
			if place.table == table && last[place] < data.ID {
				delete(rows, place)
			}
		}
	case "insert", "update", "delete", "read":
		at := place{table, string(data.Key)}
		if !has(data.Key) || data.ID <= last[at] || data.ID <= emptied[table] {
			return
		}
		old := at
		if has(data.OldKey) {
			old.key = string(data.OldKey)
		}
		var before map[string]json.RawMessage
		if last[old] < data.ID {
			before = rows[old]
			delete(rows, old)
			last[old] = data.ID
		}
		last[at] = data.ID
		if data.Action != "delete" {
			// Large values that an update left alone are not in the record.
			for _, name := range data.Unchanged {
				if value, is := before[name]; is {
					data.Record[name] = value
				}
			}
			rows[at] = data.Record
		}
	default:
		return
	}
	fmt.Println(data.Action, data.Table, string(data.Key))
}

// genuine tells whether the request is signed by our key, and not an old one that somebody sends again.
func genuine(secret []byte, header http.Header, body []byte) bool {
	timestamp := header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return false
	}
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%s.", header.Get("webhook-id"), timestamp)
	mac.Write(body)
	expected := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	// While a key is changed there are two signatures.
	for _, part := range strings.Split(header.Get("webhook-signature"), " ") {
		if hmac.Equal([]byte(part), expected) {
			return true
		}
	}
	return false
}

func main() {
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(os.Getenv("WEBHOOK_SECRET"), "whsec_"))
	if err != nil {
		log.Fatal("WEBHOOK_SECRET: ", err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		lock.Lock()
		defer lock.Unlock()
		if r.Method == http.MethodGet {
			shown := []map[string]json.RawMessage{}
			for _, row := range rows {
				shown = append(shown, row)
			}
			json.NewEncoder(w).Encode(shown)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || !genuine(secret, r.Header, body) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if !bytes.HasPrefix(body, []byte("[")) {
			body = append(append([]byte("["), body...), ']')
		}
		var events []event
		if err := json.Unmarshal(body, &events); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		for _, event := range events {
			apply(event)
		}
		// Only now: what is answered with 2xx is not sent again.
		w.WriteHeader(http.StatusNoContent)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
