BEGIN TRANSACTION;
CREATE TABLE audit (
	audit_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at DOUBLE NOT NULL, 
	reviewer TEXT NOT NULL, 
	action TEXT NOT NULL, 
	item_id INTEGER, 
	detail TEXT NOT NULL
);
INSERT INTO "audit" VALUES(1,1000000.0,'ann','lease',1,'lease 1');
INSERT INTO "audit" VALUES(2,1000000.0,'ann','accept',1,'event 1 under lease 1');
INSERT INTO "audit" VALUES(3,1000000.0,'ann','lease',2,'lease 2');
INSERT INTO "audit" VALUES(4,1000000.0,'ann','accept',2,'event 2 under lease 2');
INSERT INTO "audit" VALUES(5,1000000.0,'ann','lease',3,'lease 3');
INSERT INTO "audit" VALUES(6,1000000.0,'ann','accept',3,'event 3 under lease 3');
INSERT INTO "audit" VALUES(7,1000000.0,'ann','undo',3,'event 4 undoes 3');
INSERT INTO "audit" VALUES(8,1000000.0,'ann','lease',3,'lease 4');
INSERT INTO "audit" VALUES(9,1000000.0,'ben','lease',2,'lease 5');
INSERT INTO "audit" VALUES(10,1000000.0,'ben','flag',2,'event 5 under lease 5');
CREATE TABLE events (
	event_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	item_id INTEGER NOT NULL, 
	reviewer TEXT NOT NULL, 
	token INTEGER, 
	stage TEXT NOT NULL, 
	action TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	"before" TEXT NOT NULL, 
	"after" TEXT NOT NULL, 
	meaning TEXT NOT NULL, 
	seconds DOUBLE NOT NULL, 
	at DOUBLE NOT NULL, 
	late BOOLEAN NOT NULL, 
	undoes INTEGER, 
	FOREIGN KEY(item_id) REFERENCES items (item_id), 
	FOREIGN KEY(reviewer) REFERENCES reviewers (name), 
	FOREIGN KEY(token) REFERENCES leases (token), 
	UNIQUE (undoes), 
	FOREIGN KEY(undoes) REFERENCES events (event_id)
);
INSERT INTO "events" VALUES(1,1,'ann',1,'read','accept','','A','A','Yes',0.0,1000000.0,0,NULL);
INSERT INTO "events" VALUES(2,2,'ann',2,'read','accept','','A','A','Yes',0.0,1000000.0,0,NULL);
INSERT INTO "events" VALUES(3,3,'ann',3,'read','accept','','A','A','Yes',0.0,1000000.0,0,NULL);
INSERT INTO "events" VALUES(4,3,'ann',NULL,'read','undo','','A','','',0.0,1000000.0,0,3);
INSERT INTO "events" VALUES(5,2,'ben',5,'read','flag','odd','A','','',0.0,1000000.0,0,NULL);
CREATE TABLE items (
	item_id INTEGER NOT NULL, 
	iteration INTEGER NOT NULL, 
	question_id TEXT NOT NULL, 
	image_id TEXT NOT NULL, 
	patient TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	"before" TEXT NOT NULL, 
	priority DOUBLE NOT NULL, 
	reads INTEGER NOT NULL, 
	payload JSON NOT NULL, 
	PRIMARY KEY (item_id), 
	UNIQUE (iteration, question_id), 
	FOREIGN KEY(iteration) REFERENCES iterations (iteration)
);
INSERT INTO "items" VALUES(1,0,'q0001','i0001','p0001','yes_no','A',1.0,1,'{"question": {"question_id": "q0001", "image_id": "i0001", "kind": "yes_no", "options": ["Yes", "No"]}}');
INSERT INTO "items" VALUES(2,0,'q0002','i0002','p0002','yes_no','A',1.0,2,'{"question": {"question_id": "q0002", "image_id": "i0002", "kind": "yes_no", "options": ["Yes", "No"]}}');
INSERT INTO "items" VALUES(3,0,'q0003','i0003','p0003','yes_no','A',1.0,2,'{"question": {"question_id": "q0003", "image_id": "i0003", "kind": "yes_no", "options": ["Yes", "No"]}}');
CREATE TABLE iterations (
	iteration INTEGER NOT NULL, 
	fingerprint TEXT NOT NULL, 
	annotations INTEGER NOT NULL, 
	closed_at DOUBLE, 
	PRIMARY KEY (iteration)
);
INSERT INTO "iterations" VALUES(0,'f',6,NULL);
CREATE TABLE leases (
	token INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	item_id INTEGER NOT NULL, 
	reviewer TEXT NOT NULL, 
	stage TEXT NOT NULL, 
	taken_at DOUBLE NOT NULL, 
	FOREIGN KEY(item_id) REFERENCES items (item_id), 
	FOREIGN KEY(reviewer) REFERENCES reviewers (name)
);
INSERT INTO "leases" VALUES(1,1,'ann','read',1000000.0);
INSERT INTO "leases" VALUES(2,2,'ann','read',1000000.0);
INSERT INTO "leases" VALUES(3,3,'ann','read',1000000.0);
INSERT INTO "leases" VALUES(4,3,'ann','read',1000000.0);
INSERT INTO "leases" VALUES(5,2,'ben','read',1000000.0);
CREATE TABLE queue (
	item_id INTEGER NOT NULL, 
	iteration INTEGER NOT NULL, 
	place INTEGER NOT NULL, 
	patient TEXT NOT NULL, 
	stage TEXT NOT NULL, 
	token INTEGER, 
	held_until DOUBLE NOT NULL, 
	PRIMARY KEY (item_id), 
	FOREIGN KEY(item_id) REFERENCES items (item_id), 
	FOREIGN KEY(token) REFERENCES leases (token)
);
INSERT INTO "queue" VALUES(1,0,1,'p0001','done',1,0.0);
INSERT INTO "queue" VALUES(2,0,0,'p0002','read',5,0.0);
INSERT INTO "queue" VALUES(3,0,3,'p0003','read',4,1000600.0);
CREATE TABLE reviewers (
	name TEXT NOT NULL, 
	role TEXT NOT NULL, 
	simulated BOOLEAN NOT NULL, 
	active BOOLEAN NOT NULL, 
	salt TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "reviewers" VALUES('ann','reviewer',0,1,'4685f018f31872874cc6a400eee30255','bfc66f2cb5ff904c302638288de5cf2ac9ec6c8b79fba08c5f85d6db7fce1232');
INSERT INTO "reviewers" VALUES('ben','reviewer',0,1,'999a55e1dd641be95f8c5d12951b0f99','9ebf4b67e64c9707abab247bfed044a5c12b46069fc8ca6e275ecfd9efb2b699');
INSERT INTO "reviewers" VALUES('lea','lead',0,1,'34b731242c019dbfb743084a0f2477ad','5421534350c3cd194ba9a8d4d7960ee113b43ec03c9de2c4b5c26984ac49aec1');
CREATE TABLE version (
	version INTEGER NOT NULL
);
INSERT INTO "version" VALUES(1);
CREATE INDEX leases_reviewer ON leases (reviewer, token);
CREATE INDEX leases_item ON leases (item_id, reviewer);
CREATE INDEX events_reviewer ON events (reviewer, event_id);
CREATE INDEX events_item ON events (item_id, reviewer);
CREATE UNIQUE INDEX events_one_a_lease ON events (token) WHERE late IS 0;
CREATE INDEX queue_held ON queue (held_until);
CREATE INDEX queue_patient ON queue (patient);
CREATE INDEX queue_next ON queue (stage, iteration, place);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('leases',5);
INSERT INTO "sqlite_sequence" VALUES('audit',10);
INSERT INTO "sqlite_sequence" VALUES('events',5);
COMMIT;
