use super::*;
use crate::dns::question::{self, Read};
use crate::dns::testing::ask;

fn question(name: &str) -> Box<Question> {
    match question::read(&ask(name, RecordType::A, Some(1232)), Way::Udp, true) {
        Read::Question(question) => question,
        Read::Refused(_) | Read::Nothing => panic!("it is a question"),
    }
}

#[test]
fn an_answer_is_that_to_the_question_by_id_and_name() {
    let sent = with_id(&packet(&question("WWW.example.com.")).unwrap(), 7);
    let answer = |name: &str, kind, id: u16| {
        let mut message = Message::new(id, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    };
    assert!(is_answer(&answer("www.example.com.", RecordType::A, 7), &sent));
    assert!(is_answer(&answer("wWw.example.com.", RecordType::A, 7), &sent), "whatever its case");
    assert!(!is_answer(&answer("www.example.com.", RecordType::A, 8), &sent));
    assert!(!is_answer(&answer("www.example.com.", RecordType::AAAA, 7), &sent));
    assert!(!is_answer(&answer("ww.example.com.", RecordType::A, 7), &sent));
    assert!(!is_answer(&sent, &sent), "a question is no answer");
    assert!(!is_answer(&[], &sent));
}

#[test]
fn the_client_has_its_id_and_its_letters_back() {
    let question = question("wWw.ExAmple.com.");
    let sent = packet(&question).unwrap();
    assert!(!sent.windows(3).any(|part| part == b"wWw"), "in lower case, so that equal questions are one");
    let mut answer = sent.clone();
    answer[2] |= 0x80;
    let back = Message::from_vec(&addressed(&answer, &question).unwrap()).unwrap();
    assert_eq!(back.metadata.id, 0x1234);
    assert_eq!(back.queries[0].name().to_ascii(), "wWw.ExAmple.com.");
    assert_eq!(addressed(&answer[..16], &question), None, "cut off");
}
